"""Makes the pages of the site that follow from other files: the start page, the changelog and the reference."""

from __future__ import annotations

import importlib
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
COPIES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "examples/README.md": "examples.md"}
# Page of the reference -> its title, and the modules whose public names it shows.
REFERENCE = {
    "losses": ("Losses", ("sad.losses", "sad.trajectories.spans", "sad.errors")),
    "trajectories": ("Trajectories", ("sad.trajectories.",)),
    "training": ("Training", ("sad.training.", "sad.teacher_cache.", "sad.on_policy.", "sad.planner.", "sad.integrations.")),
    "agents": ("Agents and environments", ("sad.agents.", "sad.envs.")),
}
# Public names that are not attributes of `sad`.
FURTHER = {
    "training": (
        "sad.integrations.accelerate.Distillation",
        "sad.integrations.trl.SpanSFTTrainer",
        "sad.integrations.trl.SpanDistillationTrainer",
    ),
    "agents": ("sad.envs.make", "sad.envs.register", "sad.envs.names", "sad.envs.Env", "sad.envs.Task", "sad.envs.Step"),
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_EXTERNAL = re.compile(r"[a-z]+:|#|/")


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages, and the pictures outside `docs` to which pages link."""
    for source, page in COPIES.items():
        files.append(File.generated(config, page, content=_moved((ROOT / source).read_text(), posixpath.dirname(source))))
    for page in REFERENCE:
        files.append(File.generated(config, f"reference/{page}.md", content=reference_page(page)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for picture in sorted({target for path in ROOT.glob("docs/*.md") for target in _pictures(path)} | _start_pictures()):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links to files that are not part of the site: pictures are copied, other files are named without a link."""
    folder = posixpath.dirname(page.file.src_uri)
    return _LINK.sub(lambda found: _rewritten(found, folder), markdown)


def _rewritten(found: re.Match[str], folder: str) -> str:
    picture, text, target = found.groups()
    if _EXTERNAL.match(target):
        return found.group()
    path = posixpath.normpath(posixpath.join("docs", folder, target.partition("#")[0]))
    if path.startswith("docs/"):
        return found.group()
    if path in COPIES:
        return f"[{text}]({posixpath.relpath(COPIES[path], folder or '.')})"
    if picture:
        return f"![{text}]({posixpath.relpath('pictures/' + posixpath.basename(path), folder or '.')})"
    return text if text.strip("`") == path or "/" in text else f"{text} (`{path}`)"


def _moved(markdown: str, home: str) -> str:
    """Returns the text of a file of the folder `home` of the repository with its links as seen from `docs`."""

    def move(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        if _EXTERNAL.match(target):
            return found.group()
        path = posixpath.normpath(posixpath.join(home, target))
        if path in COPIES:
            inside = COPIES[path]
        else:
            inside = path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}"
        return f"{picture}[{text}]({inside})"

    return _LINK.sub(move, markdown)


def _pictures(path: Path) -> set[Path]:
    targets = (target for picture, _, target in _LINK.findall(path.read_text()) if picture and target.startswith("../"))
    return {(path.parent / target).resolve() for target in targets}


def _start_pictures() -> set[Path]:
    found = _LINK.findall((ROOT / "README.md").read_text())
    return {ROOT / target for picture, _, target in found if picture and not _EXTERNAL.match(target)}


def reference_page(page: str) -> str:
    """Returns a page that mkdocstrings fills with the docstrings of the public names of some modules."""
    import sad

    title, _ = REFERENCE[page]
    homes = {name: home for home, names in sad._HOMES.items() for name in names}
    names = [f"{homes[name]}.{name}" for name in sorted(homes) if _belongs(homes[name], page)]
    parts = [f"# {title}"]
    parts += [f"::: {name}" for name in (*names, *FURTHER.get(page, ()))]
    return "\n\n".join(parts) + "\n"


def _belongs(module: str, page: str) -> bool:
    """Whether a module belongs to a page: the first page that names it or its package."""
    first = next(name for name, (_, modules) in REFERENCE.items() if any(_within(module, one) for one in modules))
    return first == page


def _within(module: str, prefix: str) -> bool:
    return module == prefix or (prefix.endswith(".") and module.startswith(prefix))


def commands_page() -> str:
    """Returns a page with the options of all commands, from the dataclasses that declare them."""
    import typer

    from sad.cli.flags import takes
    from sad.cli.main import COMMANDS, app
    from sad.training.cli_args import documented_options

    group = typer.main.get_command(app)
    parts = ["# Commands", "Every command shows these options with `--help`."]
    for name in COMMANDS:
        command = group.commands[name]
        if name == "train":
            shown = typer.Typer(add_completion=False)
            documented = takes(documented_options())(lambda options: None)
            shown.command()(documented)
            parameters = typer.main.get_command(shown).params
        else:
            parameters = command.params
        module = importlib.import_module("sad.cli." + name.replace(" ", "_").replace("-", "_"))
        parts += [f"## sad {name}", _paragraphs(module.command.__doc__ or ""), _table(parameters)]
    return "\n\n".join(parts) + "\n"


def _paragraphs(docstring: str) -> str:
    lines = docstring.strip().splitlines()
    return "\n".join(line.strip() for line in lines)


def _table(parameters: list[Any]) -> str:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for parameter in parameters:
        if parameter.name in ("help", "context"):
            continue
        argument = parameter.param_type_name == "argument"
        name = parameter.name.upper() if argument else ", ".join(parameter.opts)
        empty = parameter.default is None or parameter.default is False or parameter.default in ([], ())
        default = "required" if parameter.required else "" if empty else f"`{parameter.default}`"
        text = (parameter.help or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(rows)
