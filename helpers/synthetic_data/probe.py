"""How far apart real and synthetic photos are, as the detector's own backbone sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from torch.utils._pytree import tree_flatten

from helpers.dataset import read_image
from helpers.files import UserError
from helpers.model import Detector, backbone_of
from helpers.synthetic_data.copy_paste import CopyPaste
from helpers.synthetic_data.offline import background, make_synthetic

FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """``scores`` [n] of photos that were not learnt from (above 0: taken for synthetic) and the truth [n] bool;
    ``numbers`` of the synthetic photos in their order.
    """

    scores: np.ndarray
    synthetic: np.ndarray
    numbers: list[int]

    def by_look(self) -> list[tuple[int, float]]:
        """(number, score) of the synthetic photos, those first that look most synthetic."""
        return sorted(zip(self.numbers, self.scores[self.synthetic].tolist()), key=lambda pair: -pair[1])

    @property
    def right(self) -> int:
        return int(((self.scores > 0) == self.synthetic).sum())

    @property
    def accuracy(self) -> float:
        return self.right / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's (https://doi.org/10.1080/01621459.1927.10502953)."""
        bounds = binomtest(self.right, len(self.scores)).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)


def probe(
    detector: Detector, copy_paste: CopyPaste, seed: int, most: int = 200, progress: Callable = iter
) -> tuple[Probe, Probe]:
    """Real against synthetic photos, and as a control real ones against others that are real as well.

    ``most`` of each at most. No photo is on both sides: the synthetic ones' backgrounds are others than the real ones.
    The classifier is a logistic regression on :func:`features`, judged by cross-validation. ``progress`` wraps the
    photos (tqdm). Raises UserError where there are too few photos.
    """
    index = copy_paste.segmentations.index
    n = min(most, len(index) // 2)
    if n < 2 * FOLDS:
        raise UserError(
            f"The probe needs {4 * FOLDS} training photos and as many synthetic ones, there are {len(index)} and "
            f"{2 * most}: take more photos, or more arm_steps."
        )
    rows, numbers = {"real": [], "other": [], "synthetic": []}, []
    for number in progress(range(2 * n)):
        i = background(len(index), seed, number)
        try:
            image = read_image(index.path(i), int(index.heights[i]), int(index.widths[i]))
        except OSError:
            continue
        rows["other" if number < n else "real"].append(features(detector, image))
        if number < n:
            numbers.append(number)
            rows["synthetic"].append(features(detector, make_synthetic(copy_paste, seed, number).pasted.image))
    return tuple(_classify(rows["real"], rows[side], numbers, seed) for side in ("synthetic", "other"))


def _classify(real: list[np.ndarray], synthetic: list[np.ndarray], numbers: list[int], seed: int) -> Probe:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    truth = np.repeat([False, True], [len(real), len(synthetic)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32)
    scores = cross_val_predict(model, np.stack(real + synthetic), truth, cv=folds, method="decision_function")
    return Probe(scores, truth, numbers)


class _Seen(Exception):
    """The backbone is done."""


@torch.inference_mode()
def features(detector: Detector, image: np.ndarray) -> np.ndarray:
    """[F] of a photo uint8 [H, W, 3]: mean and spread of each channel of the backbone's feature maps."""
    backbone = backbone_of(detector.model) or detector.model.base_model  # YOLOS: its whole transformer
    found, boxes = [], np.zeros((0, 4), np.float32)

    def stop(module, inputs, output) -> None:  # what comes behind the backbone is not needed
        found.append(output)
        raise _Seen

    handle = backbone.register_forward_hook(stop)
    image, boxes = detector.preprocess.resize(image, boxes)
    sample = {"image": image, "boxes_xyxy": boxes, "class_labels": np.zeros(0, np.int64), "image_id": 0}
    batch = detector.preprocess.collate([{**sample, "orig_size": image.shape[:2]}])  # alone: no padding in the means
    inputs = detector.preprocess.to_device(batch, detector.model.device)
    inputs.pop("labels")
    with contextlib.suppress(_Seen), handle:
        detector.model.eval()(**inputs)
    leaves = [leaf[0].float() for leaf in tree_flatten(found)[0] if torch.is_tensor(leaf)]
    maps = [leaf.flatten(1) for leaf in leaves if leaf.ndim == 3] or [leaf.T for leaf in leaves if leaf.ndim == 2]
    return torch.cat([m.mean(1) for m in maps] + [m.std(1) for m in maps]).cpu().numpy()
