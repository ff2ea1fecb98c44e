"""The command line of a worker on the JVM (specification 000 §4.1): flat, and no shell."""

from __future__ import annotations

from collections.abc import Iterable

JVM_OPTIONS = ("-Xss6m", "-Xms2g", "-Xmx4g", "-XX:+UseG1GC", "-Djava.awt.headless=true")
SERVER = ("clojure.main", "-m", "aor.subprocess.server", "--module")


def jvm_command(
    module_class: str, classpath: str, extra_jvm_opts: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return what starts ``module_class``; of an option that stands twice the last one counts."""
    return ("java", *JVM_OPTIONS, *extra_jvm_opts, "-cp", classpath, *SERVER, module_class)
