"""A run's checkpoint as a folder for somebody without this project: an ONNX model, and how to use it.

In come the checkpoint and a few validation photos; out go ``onnx/model.onnx``, ``preprocessor.json`` and ``README.md``
in the run's folder. Begin with ``folder``; ``python -m helpers.export --preset P`` is its command.
"""
