from helpers.cli import command
from helpers.run.runner import main

command(main)
