from helpers.cli import command
from helpers.export.folder import main

command(main)
