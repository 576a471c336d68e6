"""What of a model is averaged over the sites, and what stays at each."""

from collections.abc import Mapping

from torch import Tensor, nn

# Begins the names of what is on top of the encoder, where both are together; a released encoder has no such name.
_HEAD = "head."


class Parts:
    """An encoder, which the server averages, and what is on top of it, which it may average too.

    Tensors on their way go by flat names: the encoder's by timm's, the other part's as `head.*`.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, *, share_head: bool) -> None:
        self.encoder, self.head, self.share_head = encoder, head, share_head

    def shared(self) -> dict[str, Tensor]:
        """What is averaged, as it is now, on the CPU."""
        encoder = {name: tensor.detach().cpu() for name, tensor in self.encoder.state_dict().items()}
        return encoder | self._head() if self.share_head else encoder

    def load_shared(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what the server sent."""
        encoder, head = split(tensors)
        self.encoder.load_state_dict(encoder, strict=True)
        if self.share_head:
            self.head.load_state_dict(head, strict=True)

    def local(self) -> dict[str, Tensor]:
        """What stays at the site, on the CPU."""
        return {} if self.share_head else self._head()

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `local` gave after an earlier round; other tensors among it are left alone."""
        if not self.share_head:
            self.head.load_state_dict(split(tensors)[1], strict=True)

    def _head(self) -> dict[str, Tensor]:
        return {f"{_HEAD}{name}": tensor.detach().cpu() for name, tensor in self.head.state_dict().items()}


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors, and those on top of it without their prefix."""
    head = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}, head
