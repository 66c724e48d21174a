"""The model card of a segmenter folder (README §6)."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult

from sohes.backbones.card import Card
from sohes.backbones.provenance import Provenance


def segmenter_card(
    description: str,
    provenance: Provenance,
    sha256: str,
    *,
    source: str = ".",
    name: str = "",
    license: str = "",
    results: Sequence[EvalResult] = (),
    picture: str = "",
) -> str:
    """Content of the card; see `Card`.

    Args:
        description: what the segmenter is and predicts.
        provenance: of the ViT inside, the training that made the segmenter last.
        sha256: of `model.safetensors`.
        source: what `load_segmenter` is given: a folder, or a name on the hub.
    """
    method = provenance.steps[-1].method
    use = f'''import sohes

segmenter = sohes.load_segmenter("{source}")
forest = segmenter.segment("photo.jpg")
for entity in forest:
    print(entity.index, entity.parent, entity.score, entity.mask.shape)'''
    return Card(
        name=name or f"{method} segmenter",
        description=f"A segmenter around the ViT {provenance.timm_name}, trained by {method}.\n\n{description}",
        use=use,
        provenance=provenance,
        sha256=sha256,
        library="sohes",
        task="mask-generation",
        tags=["sohes", "class-agnostic-segmentation", "hierarchical-segmentation"],
        license=license,
        results=results,
        picture=picture,
    ).text()
