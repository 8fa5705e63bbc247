"""How often labels were found, said and true: what scores of labels are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelCounts(NamedTuple):
    """How often each label was found, said, and true, each of shape (..., labels).

    Of one label a row a macro average is over the labels that occur in the truth or in the predictions; of label sets
    over `every_label`. So scikit-learn does it.
    """

    hits: NDArray[Any]
    predicted: NDArray[Any]
    actual: NDArray[Any]
    every_label: bool = False
