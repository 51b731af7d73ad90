from helpers.cli import command
from helpers.report.front_page import main

command(main)
