from helpers.cli import command
from helpers.run.notebooks import main

command(main)
