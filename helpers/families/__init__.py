"""What differs between the library's families of detectors (docs/families.md): a checkpoint's name or folder comes in.

Out goes a ``helpers.model.Detector`` that computes what was published, with our class head and its own way to resize a
photo. Begin with ``loading.load_detector``.
"""
