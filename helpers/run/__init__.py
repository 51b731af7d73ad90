"""The runner: a preset and ``NAME=VALUE`` come in, checked before anything runs.

Out go the executed notebooks, what each took, the report and the grading; a notebook that fails keeps its copy with
the error in place. Begin with ``runner.main``; ``execution`` is papermill and its kernel for one notebook.
"""
