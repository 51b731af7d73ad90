"""The data that comes with the project: drawings (``drawings.svg``) and seeds come in.

Out go photos of made-up scenes with their COCO records, some drawings held back for validation, so that everything
runs offline and its ground truth is exact. Begin with ``scenes.py``; the sprites and backgrounds are what it
composes.
"""
