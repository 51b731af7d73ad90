"""Notebook 06: the data set of 01 comes in, with COCO's masks in its annotation file.

Out go ``data/<dataset>_synthetic/``, photos onto which objects of other photos are pasted, and ``synthetic_data/``: an
experiment that trains with and without them. Begin with ``copy_paste.CopyPaste``, which also pastes in the training
loader (``paste_step``).
"""
