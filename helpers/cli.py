"""What the commands share: ``--preset P [NAME=VALUE ...]``, and one sentence instead of a traceback for a mistake."""

import argparse
import sys
from collections.abc import Callable, Sequence

import yaml

from helpers.config import Config, load_config
from helpers.files import UserError


class _Parser(argparse.ArgumentParser):
    """A parser whose refusal is one sentence, without the usage above it."""

    def error(self, message: str) -> None:
        raise UserError(f"{message[0].upper()}{message[1:]}; --help lists what there is.")


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every command has, to be read in any order (``parse_intermixed_args``)."""
    made = _Parser(prog=f"python -m {program}", description=description, allow_abbrev=False)
    made.add_argument("--preset", default="demo", metavar="P", help="a file of notebooks/presets (default: demo)")
    made.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="any parameter, such as epochs=3")
    return made


def configure(preset: str, assignments: Sequence[str]) -> tuple[Config, dict]:
    """The validated config of a command line, and its overrides as plain typed values for papermill.

    A value is text until the config has checked it (``epochs=3`` becomes 3, ``classes=person,car`` a list); nothing is
    ever evaluated. Raises UserError for anything that is not a known parameter with a valid value.
    """
    given = dict(_assignment(text) for text in assignments)
    cfg = load_config(preset, **given)
    values = cfg.as_json()
    return cfg, {"preset": preset, **{name: values[name] for name in given}}


def config_of(program: str, description: str, argv: Sequence[str] | None) -> Config:
    """The config that a command without options of its own is given."""
    arguments = parser(program, description).parse_intermixed_args(argv)
    return configure(arguments.preset, arguments.overrides)[0]


def _assignment(text: str) -> tuple[str, str | list]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value.strip():
        raise UserError(f"{text!r} is not of the form NAME=VALUE, such as epochs=3.")
    if name == "preset":
        raise UserError(f"Give the preset as --preset {value}.")
    if value.lstrip().startswith("["):  # classes=[person, car] as in the YAML presets
        try:
            return name, yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{name}={value} is not a list such as [person, car].") from None
    return name, value.strip()


def command(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a command's ``main`` and leave with its exit status; a UserError is one sentence on stderr and status 2."""
    try:
        status = main(None)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        status = 130
    sys.exit(status)
