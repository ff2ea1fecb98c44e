"""The example fleet: agents that work with no API key and no network.

They import what any agent's author imports, so they are also the models to copy from.
"""

from __future__ import annotations

from pathlib import Path

from retinue.agent import Agent
from retinue.examples.echo import ExampleAgent
from retinue.examples.review import ReviewAgent
from retinue.examples.summary import SummaryAgent
from retinue.examples.survey import SurveyAgent

__all__ = ["ExampleAgent", "ReviewAgent", "SummaryAgent", "SurveyAgent", "fleet"]


def fleet(survey_root: Path) -> list[Agent]:
    """Return one of each; the surveyor reads nothing outside of ``survey_root``."""
    return [ExampleAgent(), SurveyAgent(survey_root), SummaryAgent(), ReviewAgent()]
