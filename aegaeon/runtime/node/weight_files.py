"""Which files the weights in use are of: KV that was computed with others is nobody's."""

from __future__ import annotations

from collections.abc import Iterable

from aegaeon.engine.prepared.fingerprint import weights_fingerprint
from aegaeon.engine.prepared.prepared_model import PreparedModel


class WeightFiles:
    """The files of weights by model, as they were when the service started and when they were looked at last."""

    def __init__(self, models: Iterable[PreparedModel]) -> None:
        self._models = {model.spec.name: model for model in models}
        self._now = {name: self._look(name) for name in self._models}

    def version(self, model: str) -> str:
        """Another one for other weights; empty for those with which the service started."""
        now = self._now[model]
        return "" if now == self._models[model].weights else now

    def changed(self, model: str) -> bool:
        """Look at a model's files: whether they are others than before."""
        before, self._now[model] = self._now[model], self._look(model)
        return self._now[model] != before

    def _look(self, model: str) -> str:
        try:
            return weights_fingerprint(self._models[model].path)
        except OSError as error:
            return f"unreadable: {error}"  # whoever wants to read them says so
