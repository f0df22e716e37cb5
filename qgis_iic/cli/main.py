"""The `iic` command: one module a subcommand, imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = ("extract", "segment", "train", "export", "match", "adapt", "finetune", "evaluate", "quantise", "info")


class _LazyGroup(click.Group):
    """Each subcommand is `command` in the module of its name, so that `iic extract` never imports torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"qgis_iic.cli.{cmd_name}").command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="qgis-iic")
def main() -> None:
    """Building polygons from very-high-resolution imagery, without labels."""


if __name__ == "__main__":
    main()
