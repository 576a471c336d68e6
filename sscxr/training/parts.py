"""The parts of a model that are averaged over the sites, and those that stay at each."""

from collections.abc import Mapping

from torch import Tensor, nn

# Prefix of the head's names in a joint state; a released encoder has no such name.
_HEAD = "head."


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
    head = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}, head
