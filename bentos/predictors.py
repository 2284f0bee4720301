"""Load a model folder (`serving.json` and the artifact) and predict with it.

The artifact's sha256 is checked on the bytes that are then loaded, and nothing here unpickles: ONNX, plain arrays
(npz without pickle) or skops, whose types outside of its own allow list must stand in `TRUSTED_SKOPS_TYPES`.
The heavy libraries are imported by the loader that needs them, so that an ONNX model starts without scikit-learn.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.schema import ArtifactError, ServingSpec, read

__all__ = ["ArtifactError", "Outputs", "Predictor", "load"]

# Types that a reviewed skops file may hold besides those that skops itself trusts.
TRUSTED_SKOPS_TYPES = (
    "sklearn.tree._tree.Tree",
    "sklearn._loss.link.IdentityLink",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.link.MultinomialLogit",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn._loss.loss.HalfMultinomialLoss",
    "sklearn._loss.loss.HalfSquaredError",
)


@dataclass(frozen=True)
class Outputs:
    """What a table model says of `n` rows; what its task does not have is None."""

    labels: NDArray[np.int64] | None = None  # [n] index into the classes
    probabilities: NDArray[np.float32] | None = None  # [n, classes]
    values: NDArray[np.float32] | None = None  # [n], regression

    def finite(self) -> bool:
        """Tell whether no output is NaN or infinite."""
        numbers = self.values if self.probabilities is None else self.probabilities
        return numbers is None or bool(np.isfinite(numbers).all())


class Predictor:
    """A verified, loaded model. Table models offer `predict`, ranking models `recommend`."""

    def __init__(self, spec: ServingSpec) -> None:
        self.spec = spec

    def predict(self, matrix: NDArray[np.float32]) -> Outputs:
        """Predict for the rows of `matrix`, float32 [n, columns] in schema order, categories as their index."""
        raise NotImplementedError(f"a {self.spec.task} model has no predict")

    def recommend(
        self, users: NDArray[np.int64], k: int
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]], NDArray[np.bool_]]:
        """Return for each of `users` the ids of at most `k` items, best first, their scores, and if it is known.

        Items that the user has rated are left out. An unknown user gets the most popular items, scored by popularity.
        """
        raise NotImplementedError(f"a {self.spec.task} model has no recommend")

    def title(self, item: int) -> str | None:
        """Return the title of item `item` of a ranking model, None where it has none."""
        return None


def load(folder: Path, expected_sha256: str | None = None) -> Predictor:
    """Load the model in `folder` after its artifact matched `expected_sha256` (default: that of serving.json).

    Raises ArtifactError, one line, when a file is missing, damaged, or not what was released.
    """
    spec = read(folder)
    path = folder / spec.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    found, wanted = hashlib.sha256(content).hexdigest(), (expected_sha256 or spec.sha256).removeprefix("sha256:")
    if found != wanted:
        raise ArtifactError(f"{path}: sha256 is {found[:16]}…, the release says {wanted[:16]}…: refused to load it")
    loaders = {"onnx": OnnxPredictor, "skops": SkopsPredictor, "npz": FactorPredictor}
    try:
        return loaders[spec.format](spec, content)
    except ArtifactError:
        raise
    except Exception as error:  # the libraries raise their own types; whatever it is, this model cannot be served
        reason = str(error).strip().splitlines()
        raise ArtifactError(
            f"{path}: not a usable {spec.format} file: {reason[0] if reason else type(error).__name__}"
        ) from error


class OnnxPredictor(Predictor):
    """ONNX Runtime on the CPU: input `rows`, outputs `label` and `probabilities`, or `value`."""

    def __init__(self, spec: ServingSpec, content: bytes) -> None:
        import onnxruntime

        super().__init__(spec)
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        # Small models: a thread pool costs more than it gives, and one replica is one core.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs = [part.name for part in self._session.get_inputs()]
        outputs = {part.name for part in self._session.get_outputs()}
        self._names = ["value"] if spec.task == "regression" else ["label", "probabilities"]
        if inputs != ["rows"] or not outputs.issuperset(self._names):
            raise ArtifactError(f"{spec.file}: has {inputs} -> {sorted(outputs)}, not ['rows'] -> {self._names}")

    def predict(self, matrix: NDArray[np.float32]) -> Outputs:
        found: Any = self._session.run(self._names, {"rows": matrix})
        if len(self._names) == 1:
            return Outputs(values=found[0].reshape(-1))
        return Outputs(labels=found[0], probabilities=found[1])


class SkopsPredictor(Predictor):
    """A scikit-learn estimator from a skops file; its classes are the indexes 0..n-1."""

    def __init__(self, spec: ServingSpec, content: bytes) -> None:
        import skops.io

        super().__init__(spec)
        unknown = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED_SKOPS_TYPES))
        if unknown:
            raise ArtifactError(f"{spec.file}: holds the type {unknown[0]}, which is not on the reviewed list")
        self._estimator: Any = skops.io.loads(content, trusted=list(TRUSTED_SKOPS_TYPES))

    def predict(self, matrix: NDArray[np.float32]) -> Outputs:
        if self.spec.task == "regression":
            return Outputs(values=np.asarray(self._estimator.predict(matrix), np.float32).reshape(-1))
        probabilities = np.asarray(self._estimator.predict_proba(matrix), np.float32)
        labels = np.asarray(self._estimator.classes_, np.int64)[probabilities.argmax(axis=1)]
        return Outputs(labels=labels, probabilities=probabilities)


class FactorPredictor(Predictor):
    """Matrix factorisation from plain arrays: score = user_factors @ item_factors.T + item_bias.

    `seen_indptr` int64 [users + 1] and `seen_items` int32 (positions in `item_ids`) are a CSR table of the items that
    each user has rated.
    """

    _SHAPES: Mapping[str, tuple[str, str]] = {  # name: (kind of dtype, dimensions)
        "item_ids": ("i", "m"),
        "user_ids": ("i", "u"),
        "user_factors": ("f", "uf"),
        "item_factors": ("f", "mf"),
        "item_bias": ("f", "m"),
        "popularity": ("f", "m"),
    }

    def __init__(self, spec: ServingSpec, content: bytes) -> None:
        super().__init__(spec)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in archive.files}
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise ArtifactError(f"{spec.file}: not a usable npz file: {error}") from None
        self._check(arrays)
        self._user_factors = np.ascontiguousarray(arrays["user_factors"], np.float32)
        self._item_factors = np.ascontiguousarray(arrays["item_factors"], np.float32)
        self._item_bias = arrays["item_bias"].astype(np.float32)
        self._item_ids = arrays["item_ids"].astype(np.int64)
        self._popularity = arrays["popularity"].astype(np.float32)
        self._by_popularity = np.argsort(-self._popularity, kind="stable")
        self._rows = {int(user): row for row, user in enumerate(arrays["user_ids"])}
        self._seen_indptr, self._seen_items = arrays["seen_indptr"], arrays["seen_items"]
        titles = arrays.get("titles")
        self._titles = {} if titles is None else dict(zip(self._item_ids.tolist(), titles.tolist(), strict=True))

    def _check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Refuse arrays that would answer with an exception or a NaN at the first request."""
        sizes: dict[str, int] = {}
        for name in (*self._SHAPES, "seen_indptr", "seen_items"):
            if name not in arrays:
                raise ArtifactError(f"{self.spec.file}: array '{name}' is missing")
        for name, (kind, dimensions) in self._SHAPES.items():
            array = arrays[name]
            expected = tuple(
                sizes.setdefault(letter, size) for letter, size in zip(dimensions, array.shape, strict=False)
            )
            if array.dtype.kind != kind or array.ndim != len(dimensions) or array.shape != expected:
                raise ArtifactError(
                    f"{self.spec.file}: array '{name}' is {array.dtype} {array.shape}, which does not fit"
                )
            if not np.isfinite(array).all():
                raise ArtifactError(f"{self.spec.file}: array '{name}' holds NaN or infinity")
        indptr, seen = arrays["seen_indptr"], arrays["seen_items"]
        if (
            indptr.shape != (sizes["u"] + 1,)
            or indptr[0] != 0
            or indptr[-1] != len(seen)
            or (np.diff(indptr) < 0).any()
            or (len(seen) > 0 and (seen.min() < 0 or seen.max() >= sizes["m"]))
        ):
            raise ArtifactError(f"{self.spec.file}: arrays 'seen_indptr' and 'seen_items' do not fit together")
        if "titles" in arrays and (arrays["titles"].dtype.kind != "U" or arrays["titles"].shape != (sizes["m"],)):
            raise ArtifactError(f"{self.spec.file}: array 'titles' must be text, one for each item")

    def recommend(
        self, users: NDArray[np.int64], k: int
    ) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]], NDArray[np.bool_]]:
        items: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        known = np.zeros(len(users), np.bool_)
        for i, user in enumerate(users.tolist()):
            row = self._rows.get(user)
            if row is None:
                best, score = self._by_popularity[:k], self._popularity
            else:
                known[i] = True
                score = self._item_factors @ self._user_factors[row] + self._item_bias
                seen = self._seen_items[self._seen_indptr[row] : self._seen_indptr[row + 1]]
                best = _top(score, seen, k)
            items.append(self._item_ids[best])
            scores.append(score[best])
        return items, scores, known

    def title(self, item: int) -> str | None:
        return self._titles.get(item)


def _top(scores: NDArray[np.float32], excluded: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Return the positions of the `k` highest scores, best first and ties by position, without `excluded`."""
    masked = scores.copy()
    masked[excluded] = -np.inf
    k = min(k, len(scores) - len(np.unique(excluded)))
    if k <= 0:
        return np.empty(0, np.intp)
    # All that reach the k-th score, so that ties are cut by position and not by the partition's whim.
    threshold = np.partition(masked, len(masked) - k)[len(masked) - k]
    candidates = np.flatnonzero(masked >= threshold)
    return candidates[np.argsort(-masked[candidates], kind="stable")][:k]
