"""Who clicks in an evaluation, how often, and what is reported."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..clicks import boxes_from_masks, jitter_boxes, sample_center_clicks, sample_people_clicks


@dataclass(frozen=True)
class Protocol:
    """A simulated user.

    Args:
        name: of the protocol.
        num_prompts: prompts of each object, the first one included.
        reported: after how many of them numbers go into tables.
        first: "click"; "box", the tight one; or "noisy_box", each side of which is moved by up to a tenth of it.
        clicks: where clicks go: to the "center" of the largest error, or as "people" click.
        avoid_clicked: no pixel is clicked twice.
        num_draws: how many users there are where chance is involved; each goes through all objects.
    """

    name: str
    num_prompts: int
    reported: tuple[int, ...]
    first: str = "click"
    clicks: str = "center"
    avoid_clicked: bool = False
    num_draws: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "reported", tuple(self.reported))  # JSON has lists

    def shortened(self, num_prompts: int | None = None, num_draws: int | None = None) -> "Protocol":
        """With another number of prompts or users, where it is given.

        Raises:
            ValueError: for fewer than one, or several users who do the same.
        """
        num_prompts = self.num_prompts if num_prompts is None else num_prompts
        num_draws = self.num_draws if num_draws is None else num_draws
        if num_prompts < 1 or num_draws < 1:
            raise ValueError(f"{self.name} with {num_prompts} prompts and {num_draws} users, expected 1 or more.")
        if num_draws > 1 and self.first != "noisy_box" and self.clicks != "people":
            raise ValueError(f"{self.name} leaves nothing to chance: {num_draws} users would do the same, ask for 1.")
        reported = *(count for count in self.reported if count < num_prompts), num_prompts
        return replace(self, num_prompts=num_prompts, reported=reported, num_draws=num_draws)


SAM_CLICKS = (1, 2, 3, 5, 9)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # SAM paper, appendix D.1: the point farthest from the border, then the centre of the largest error.
        Protocol("sam", 9, SAM_CLICKS),
        # RITM (Sofiiuk et al. 2021), `isegm/inference/clicker.py`: the same and a map of pixels that were clicked on.
        Protocol("ritm", 20, (1, 3, 5, 10, 20), avoid_clicked=True),
        Protocol("box", 5, (1, 2, 3, 5), first="box"),
        # The noise is that of SAM 2's code, `sample_box_points`.
        Protocol("noisy_box", 5, (1, 2, 3, 5), first="noisy_box", num_draws=3),
        Protocol("people", 9, SAM_CLICKS, clicks="people", num_draws=5),
    )
}


class SimulatedUser:
    """Prompts of a protocol for N objects of an image.

    Args:
        protocol: what the user does.
        target: bool [N, H, W], what the user wants.
        valid: bool [N, H, W], False where the user does not look.
        image_id: decides all chance, together with `seed` and `draw`; the place of the image does not.
        draw: which of `num_draws` users it is.
        kept: places of the objects among all of the image, so that an object has the same user among others.
    """

    def __init__(
        self,
        protocol: Protocol,
        target: Tensor,
        valid: Tensor,
        *,
        image_id: str,
        draw: int,
        seed: int,
        kept: list[int],
    ):
        self.protocol, self.target, self.valid = protocol, target, valid
        self.key, self.kept = [seed, draw, zlib.crc32(image_id.encode())], kept
        self.boxes: Tensor | None = None
        self.points = torch.empty(len(target), 0, 2)
        self.labels = torch.empty(len(target), 0, dtype=torch.long)

    def act(self, answer: Tensor | None) -> None:
        """Add a prompt to `points` and `labels`, or give `boxes`, for the `answer` so far, bool [N, H, W]."""
        if answer is None and self.protocol.first != "click":
            self.boxes = self.draw_boxes()
            return
        if answer is not None:
            self.target, self.valid = self.target.to(answer.device), self.valid.to(answer.device)
        masks = self.target[None], None if answer is None else answer[None]
        if self.protocol.clicks == "people":
            given = {"draws": self.draws(1)[None, :, 0]}
            point, label = sample_people_clicks(*masks, valid=self.valid[None], **given)
        else:
            clicked = self.points[None].to(self.target.device) if self.protocol.avoid_clicked else None
            point, label = sample_center_clicks(*masks, valid=self.valid[None], clicked=clicked)
        self.points = torch.cat([self.points, point[0].cpu()], dim=1)
        self.labels = torch.cat([self.labels, label[0].cpu()], dim=1)

    def draw_boxes(self) -> Tensor:
        """float32 [N, 4]."""
        boxes = boxes_from_masks(self.target[None])
        if self.protocol.first == "noisy_box":
            height, width = self.target.shape[-2:]
            boxes = jitter_boxes(boxes, height=height, width=width, draws=self.draws(4)[None])
        return boxes[0].nan_to_num()  # an object without pixels gets a box at (0, 0)

    def draws(self, count: int) -> Tensor:
        """float64 [N, count] in [0, 1) for the next prompt."""
        rng = np.random.default_rng([*self.key, self.points.shape[1] + (self.boxes is not None)])
        return torch.from_numpy(rng.random((max(self.kept, default=-1) + 1, count))[self.kept])


__all__ = ["PROTOCOLS", "Protocol", "SimulatedUser"]
