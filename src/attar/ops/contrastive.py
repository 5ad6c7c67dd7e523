"""How well images and texts match: losses over all pairs of a batch, in nats.

Vectors are [batch, width], of length 1; `scale` is what their cosines are multiplied with.
`same` is [batch, batch], True where a text is also that of the image: texts may come twice.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor


def similarities(seen: Tensor, read: Tensor, scale: Tensor) -> Tensor:
    """Scale x cosine of each image, a row, to each text, a column; in float32."""
    with torch.autocast(seen.device.type, enabled=False):  # it would round products to bf16
        return scale.float() * (seen.float() @ read.float().t())


def contrastive(scores: Tensor, same: Tensor) -> Tensor:
    """-log of the share that its own texts have in an image's row, and the same of columns.

    scores: [images, texts]. The mean over rows, and over columns, and of the two (CLIP, Radford
    et al. 2021, arXiv 2103.00020, figure 3); where a text comes twice, the mean over its images
    too (UniCL, Yang et al. 2022, arXiv 2204.03610, equation 2).
    """
    return (_missed(scores, same) + _missed(scores.t(), same.t())) / 2


def interactive(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], scale: Tensor, same: Tensor
) -> Tensor:
    """The student's images among the teacher's texts, and its texts among the teacher's images.

    Each pair are the vectors of images and of texts, all of one width. Interactive contrastive
    learning of CLIP-KD (Yang et al. 2024, arXiv 2307.12732).
    """
    by_image = _missed(similarities(student[0], teacher[1], scale), same)
    by_text = _missed(similarities(student[1], teacher[0], scale), same.t())
    return (by_image + by_text) / 2


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax of each row, and of each column, of similarities.

    student, teacher: [images, texts], each times its own scale. The mean over rows, and over
    columns, and of the two (contrastive relational distillation of CLIP-KD, arXiv 2307.12732;
    affinity mimicking of TinyCLIP, Wu et al. 2023, arXiv 2309.12314).
    """
    return (_apart(student, teacher) + _apart(student.t(), teacher.t())) / 2


def vectors_missed(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Squared distance to the teacher's vectors, of one width: a mean over rows and both towers.

    Feature distillation of CLIP-KD (arXiv 2307.12732). 2 - 2 cos, for vectors of length 1.
    """
    both = zip(student, teacher, strict=True)
    each = [(own.float() - other.float()).square().sum(-1).mean() for own, other in both]
    return sum(each, each[0].new_zeros(())) / len(each)


def _missed(scores: Tensor, same: Tensor) -> Tensor:
    wanted = same / same.sum(-1, keepdim=True)
    return -(wanted * scores.log_softmax(-1)).sum(-1).mean()


def _apart(student: Tensor, teacher: Tensor) -> Tensor:
    own, other = student.log_softmax(-1), teacher.log_softmax(-1)
    return (other.exp() * (other - own)).sum(-1).mean()
