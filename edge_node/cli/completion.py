"""Write shell completion from the parser itself: `completion bash|zsh|fish`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_BASH = """\
_edge_node() {{
  local word path= cur="${{COMP_WORDS[COMP_CWORD]}}"
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$path $word" in
{steps}
    esac
  done
  case "$path" in
{offers}
  esac
}}
complete -o default -F _edge_node edge-node
"""


class Level(NamedTuple):
    """Hold what can follow a path of verbs: (word, help) of verbs and of options."""

    path: tuple[str, ...]
    verbs: list[tuple[str, str]]
    options: list[tuple[str, str]]


def add_verbs(verbs: Any, root: argparse.ArgumentParser) -> None:
    """Add the verb to the parser, of which it will write the completion."""
    parser = verbs.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Print a completion script. For bash: source <(edge-node completion bash)",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(verb=completion, root=root)


def completion(parsed: argparse.Namespace) -> int:
    """Print the script."""
    levels = list(_levels(parsed.root, ()))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[parsed.shell](levels), end="")
    return 0


def _levels(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[Level]:
    verbs: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            verbs = [(one.dest, one.help or "") for one in action._choices_actions]
        elif action.option_strings:
            options += [(option, action.help or "") for option in action.option_strings]
        elif action.choices:
            verbs = [(str(choice), "") for choice in action.choices]
    verbs += [(word, "") for word in parser.get_default("completions") or ()]
    yield Level(path, verbs, options)
    for name, subparser in below.items():
        yield from _levels(subparser, (*path, name))


def _bash(levels: list[Level]) -> str:
    steps, offers = [], []
    for level in levels:
        place = "".join(f" {word}" for word in level.path)
        if level.path:
            before, word = place.rsplit(" ", 1)
            steps.append(f'      "{before} {word}") path="{place}" ;;')
        words = " ".join(word for word, _ in [*level.verbs, *level.options])
        offers.append(f'    "{place}") COMPREPLY=($(compgen -W "{words}" -- "$cur")) ;;')
    return _BASH.format(steps="\n".join(steps), offers="\n".join(offers))


def _zsh(levels: list[Level]) -> str:
    return "#compdef edge-node\nautoload -U +X bashcompinit && bashcompinit\n" + _bash(levels)


def _fish(levels: list[Level]) -> str:
    lines = ["complete -c edge-node -e"]
    for level in levels:
        seen = [f"__fish_seen_subcommand_from {word}" for word in level.path]
        later = " ".join(word for word, _ in level.verbs)
        not_yet = [f"not __fish_seen_subcommand_from {later}"] if later else []
        condition = "; and ".join([*seen, *not_yet]) or "true"
        for word, about in level.verbs:
            lines.append(f"complete -c edge-node -f -n '{condition}' -a {word}{_about(about)}")
        for option, about in level.options:
            dashes = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            lines.append(f"complete -c edge-node -n '{condition}' {dashes}{_about(about)}")
    return "\n".join(lines) + "\n"


def _about(text: str) -> str:
    plain = re.sub(r"['\\]", "", text)
    return f" -d '{plain}'" if plain else ""
