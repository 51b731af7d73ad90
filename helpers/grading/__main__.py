from helpers.cli import command
from helpers.grading.deliverables import main

command(main)
