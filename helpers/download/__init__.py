"""Notebook 01: COCO 2017 through FiftyOne, a COCO folder on disk, or the built-in scenes come in.

Out goes ``data/<dataset>/``: photos, COCO's annotation files for our classes with COCO's own ids, and a manifest that
is written last, when all of it was decoded and counted. Begin with ``prepare.prepare``.
"""
