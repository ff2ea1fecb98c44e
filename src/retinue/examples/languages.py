"""Which language a file is written in: by its name, else by its first line."""

from __future__ import annotations

import re

_NAMES = {
    "Dockerfile": "Dockerfile",
    "Makefile": "Makefile",
    "GNUmakefile": "Makefile",
    "CMakeLists.txt": "CMake",
    "Rakefile": "Ruby",
    "Gemfile": "Ruby",
    "go.mod": "Go module",
    "LICENSE": "Text",
    "README": "Text",
}
_SUFFIXES = {
    "Assembly": "asm s",
    "C": "c h",
    "C#": "cs",
    "C++": "cc cpp cxx hh hpp hxx",
    "CSS": "css scss sass less",
    "CSV": "csv tsv",
    "Clojure": "clj cljs cljc edn",
    "CMake": "cmake",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Erlang": "erl hrl",
    "F#": "fs fsx",
    "Go": "go",
    "GraphQL": "graphql gql",
    "Groovy": "groovy gradle",
    "Haskell": "hs",
    "HTML": "html htm xhtml",
    "INI": "ini cfg conf",
    "Java": "java",
    "JavaScript": "js mjs cjs jsx",
    "JSON": "json jsonl ndjson",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lua": "lua",
    "Markdown": "md markdown mdx",
    "Nix": "nix",
    "OCaml": "ml mli",
    "PHP": "php",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Protocol Buffers": "proto",
    "Python": "py pyi pyx",
    "R": "r",
    "reStructuredText": "rst",
    "Ruby": "rb rake gemspec",
    "Rust": "rs",
    "SQL": "sql",
    "SVG": "svg",
    "Scala": "scala sc",
    "Shell": "sh bash zsh fish",
    "Svelte": "svelte",
    "Swift": "swift",
    "TeX": "tex bib sty",
    "Terraform": "tf tfvars",
    "Text": "txt log",
    "TOML": "toml",
    "TypeScript": "ts mts cts tsx",
    "Vue": "vue",
    "XML": "xml xsd xsl",
    "YAML": "yaml yml",
    "Zig": "zig",
}
_BY_SUFFIX = {suffix: name for name, words in _SUFFIXES.items() for suffix in words.split()}
_INTERPRETERS = {
    "python": "Python",
    "sh": "Shell",
    "bash": "Shell",
    "dash": "Shell",
    "zsh": "Shell",
    "node": "JavaScript",
    "deno": "TypeScript",
    "ruby": "Ruby",
    "perl": "Perl",
    "php": "PHP",
    "lua": "Lua",
    "awk": "Awk",
    "make": "Makefile",
}
_SHEBANG = re.compile(rb"#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*)?(?:\S*/)?([a-z]+)")
OTHER = "Other"


def language(name: str, head: bytes) -> str:
    """Return the language of the file ``name`` that begins with ``head``."""
    if name in _NAMES:
        return _NAMES[name]
    _, dot, suffix = name.rpartition(".")
    if dot and suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[suffix.lower()]
    match = _SHEBANG.match(head)
    return _INTERPRETERS.get(match.group(1).decode(), OTHER) if match else OTHER
