"""The parts of a model that are averaged over the sites, and those that stay at each."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

# Prefixes in a joint state of the head's names and of an optimiser's moments; a released encoder has no such names.
_HEAD = "head."
MOMENT = "moment."


class Parts:
    """An encoder, which the server averages, and its head, which it may average too.

    Tensors are sent under flat names: the encoder's are timm's, the head's are `head.*`.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, *, share_head: bool) -> None:
        self.encoder, self.head, self.share_head = encoder, head, share_head

    def shared(self) -> dict[str, Tensor]:
        """Return the present tensors to average, on the CPU."""
        encoder = {name: tensor.detach().cpu() for name, tensor in self.encoder.state_dict().items()}
        return encoder | self._head() if self.share_head else encoder

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that the server sent."""
        encoder, head = split(tensors)
        self.encoder.load_state_dict(encoder, strict=True)
        if self.share_head:
            self.head.load_state_dict(head, strict=True)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters to average that learn, under the names of `shared`."""
        for prefix, part in [("", self.encoder), *([(_HEAD, self.head)] if self.share_head else [])]:
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    yield prefix + name, parameter

    def local(self) -> dict[str, Tensor]:
        """Return the tensors that stay at the site, on the CPU."""
        return {} if self.share_head else self._head()

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `local` returned after an earlier round; other tensors are ignored."""
        if not self.share_head:
            self.head.load_state_dict(split(tensors)[1], strict=True)

    def _head(self) -> dict[str, Tensor]:
        return {f"{_HEAD}{name}": tensor.detach().cpu() for name, tensor in self.head.state_dict().items()}


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the encoder's tensors, and the head's without their prefix."""
    weights = apart(tensors)[0]
    head = {name.removeprefix(_HEAD): tensor for name, tensor in weights.items() if name.startswith(_HEAD)}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(_HEAD)}, head


def apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights, and the moments that are averaged beside them."""
    moments = {name: tensor for name, tensor in tensors.items() if name.startswith(MOMENT)}
    return {name: tensor for name, tensor in tensors.items() if name not in moments}, moments
