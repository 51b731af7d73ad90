"""Notebook 03: the data set of 01 and a published checkpoint come in.

Out goes ``artifacts/<run_name>/``: the log of every step and epoch, checkpoints that a killed run goes on from, and
the profile of a step. Begin with ``training.train``; one epoch itself is in ``helpers/engine.py``, and what stands
around it here are stop requests, faults and files.
"""
