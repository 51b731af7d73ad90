"""What a grader asks: the folder of a finished run comes in.

Out goes ``artifacts/grading.json``: for each deliverable whether it is there, whether it holds (it reads, its numbers
are finite, it agrees with its neighbours), and the command that makes it. Begin with ``deliverables.deliverables``,
the list.
"""
