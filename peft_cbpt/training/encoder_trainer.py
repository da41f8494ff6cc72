"""Purification of the image encoder itself: a LoRA under which features no longer follow universal triggers."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object, reduce
from peft import PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPModel, Trainer, TrainerCallback, TrainerControl, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.processes import num_processes
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.ladder import Search, search_ladder
from peft_cbpt.detection.rounds import NUM_IMAGES
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_lora import image_tower_lora
from peft_cbpt.training.encoder_losses import moved, update_shares
from peft_cbpt.training.epoch_log import EpochLog
from peft_cbpt.training.forward_redirection import call_through
from peft_cbpt.training.trigger_pool import FILE as POOL_FILE
from peft_cbpt.training.trigger_pool import TriggerPool, climbs_of, find_anew
from peft_cbpt.training.views import changed_images

TRIGGERS_A_STEP = 4
CHANGED_PART = 0.75
"""Of the images whose features are held; the others are as they are."""
FULL_AGREEMENT = 0.5
"""From which a tower is pulled at in full; chosen on one clean and five poisoned pocket CLIPs."""
SHARPENED_PART = 0.6
"""Length of the steps by which triggers keep up with the encoder, of a search's first."""


class _Rows(Dataset):
    """The images without anything else, each with its number."""

    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"rows": row, "pixel_values": self.images[row]["pixel_values"]}


def _collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    rows = torch.tensor([sample["rows"] for sample in samples])
    return {"rows": rows, "pixel_values": pixels if pixels.is_floating_point() else pixels.float() / 255}


class EncoderPurifier(Trainer):
    """Trains a LoRA on the image tower so that images with a universal trigger stay what they are without it.

    With f the frozen encoder and f' the purified one, each step asks that

        f'(v) be f(v) for clean images v, as they are and changed (`views`), that
        the update add little to what they send through the tower's layers (`encoder_losses.update_shares`), and that
        f'(T(v)) be f(v), by the worth of T,

    for universal triggers T of all families that bring the images of f', as it is, together: those that a scan finds,
    others that are found as the encoder learns, and all of them as they follow it (`trigger_pool`). Neither labels,
    class names nor a target are used. The text tower is not touched.

    Args:
        model: A CLIP, in which a LoRA is put, or one that has it already.
        args: The settings.
        train_dataset: Map-style dataset of clean images: rows with `pixel_values` ((3, H, W), uint8, or float in
            [0, 1]); anything else in them is ignored.
        normalize: How [0, 1] pixels become the base model's input; CLIP's own mean and standard deviation if not
            given.
        searches: What a scan of the model found, where one was made; else the trainer searches.
        suspected: Directions (D,) that a scan suspects triggers of moving images to: the tower is then pulled back
            from these, and in full, not from where families agree.
        **kwargs: As for `transformers.Trainer`.

    Every epoch logs the mean of `loss_hold`, `loss_update`, `loss_pull` (`1 - cos` of images with a trigger) and
    `worth` (see `trigger_pool.TriggerPool`).
    """

    args: EncoderPurifierArguments

    def __init__(
        self,
        model: CLIPModel | PeftModel,
        args: EncoderPurifierArguments,
        train_dataset: Any,
        normalize: PixelNormalizer | None = None,
        searches: Sequence[Search] | None = None,
        suspected: Sequence[Tensor] = (),
        **kwargs: Any,
    ):
        if not isinstance(model, PeftModel):
            set_seed(args.seed)
            model = get_peft_model(model, image_tower_lora(model, args.lora_rank))
        self.images, self.searches, self.suspected = train_dataset, searches, suspected
        self.pool: TriggerPool | None = None
        self.epoch_log = EpochLog()
        try:
            super().__init__(model, args, train_dataset=_Rows(train_dataset), data_collator=_collate, **kwargs)
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            raise InputError(str(error)) from error
        self.model_accepts_loss_kwargs = False
        base: Any = self.model.get_base_model()
        prefer_channels_last(base.vision_model)
        self.encode = image_encoder(base, normalize or PixelNormalizer())
        self._used: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self.add_callback(_EpochCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train` does."""
        self.model.to(self.args.device)  # type: ignore[arg-type]
        self.model.eval()
        return super().train(*args, **kwargs)

    def _original(self) -> AbstractContextManager:
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.disable_adapter()

    def _encode(self, pixels: Tensor) -> Tensor:
        with self.compute_loss_context_manager():
            return self.encode(pixels)

    def load(self, rows: Sequence[int]) -> Tensor:
        """Float pixels (B, 3, H, W) in [0, 1] of rows of images, on the trainer's device."""
        samples = [{"rows": row, "pixel_values": self.images[row]["pixel_values"]} for row in rows]
        return _collate(samples)["pixel_values"].to(self.args.device)

    def _some(self, count: int, *key: Any) -> Tensor:
        order = keyed_generator("search images", self.args.seed, *key).permutation(len(self.images))
        return self.load(order[:count].tolist())

    def _first_pool(self) -> TriggerPool:
        args = self.args
        searches = [one for one in self.searches or () if one.family in args.kinds]
        if not searches:
            searches = search_ladder(self._encode, self._some(NUM_IMAGES), args.seed, climbs=climbs_of(args.kinds))
        return TriggerPool.of_searches(searches, args.pool_size, args.device, self.suspected)

    def _find(self, pool: TriggerPool, step: int) -> None:
        """A new trigger against the encoder as it is; the same in all processes, which all call."""
        generator, pixels = keyed_generator("search", self.args.seed, step), self._some(self.args.search_images, step)
        args = self.args
        found = find_anew(self._encode, pixels, pool.directions, args.kinds, args.search_steps, generator)
        if num_processes() > 1:
            found = FoundTrigger(found.kind, broadcast(found.mark))
        with torch.no_grad():
            worth = pool.worth(self._encode(found(pixels)), self._encode(pixels))
        pool.add(found, self._of_all(worth))

    @staticmethod
    def _of_all(figure: Tensor) -> float:
        return (reduce(figure, "mean") if num_processes() > 1 else figure).item()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As `Trainer`'s, with triggers that are found anew now and then, and that follow the encoder otherwise."""
        step = self.state.global_step
        if self.pool is None:
            self.pool = self._first_pool()
        elif step % self.args.search_every == 0 and step:
            self._find(self.pool, step)
        loss = super().training_step(model, inputs, num_items_in_batch)
        for number, mark, pixels, worth in self._used:
            with torch.no_grad():
                if mark.grad is not None:
                    gradient = reduce(mark.grad, "mean") if num_processes() > 1 else mark.grad
                    self.pool.sharpen(number, mark.detach(), gradient, pixels, SHARPENED_PART)
                    if num_processes() > 1:  # sizes are measured on a process's own images
                        sharpened = self.pool.triggers[number]
                        self.pool.triggers[number] = FoundTrigger(sharpened.kind, broadcast(sharpened.mark))
                self.pool.worths[number] = self._of_all(worth)
        self._used = []
        return loss

    def _drawn(self, pixels: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Places and marks of triggers of the pool, the same in all processes, and a part of the batch for each."""
        assert self.pool is not None
        generator = keyed_generator("draw", self.args.seed, self.state.global_step)
        places = self.pool.draw(min(TRIGGERS_A_STEP, len(pixels), len(self.pool.triggers)), generator)
        triggers = [self.pool.triggers[place] for place in places]
        marks = [one.mark.to(pixels).clone().requires_grad_(one.kind.searched) for one in triggers]
        return list(zip(places, marks, pixels.tensor_split(len(places)), strict=True))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """What is held of clean and changed images, and what is asked of the same with triggers."""
        model.eval()  # the frozen tower computes as it is used
        rows, pixels = inputs["rows"].cpu(), inputs["pixel_values"]
        key = ("views", self.args.seed, self.state.global_step, self.args.process_index, *rows.tolist())
        generator = torch.Generator().manual_seed(int(keyed_generator(*key).integers(2**62)))
        changed = pixels.clone()
        n_changed = round(CHANGED_PART * len(pixels))
        changed[:n_changed] = changed_images(pixels[:n_changed], generator)
        with torch.no_grad(), self._original():
            held = self.encode(changed)
        unwrapped: Any = self.accelerator.unwrap_model(model)
        drawn = self._drawn(changed)
        marked = [self.pool.triggers[place].kind.apply(part, mark) for place, mark, part in drawn]
        with update_shares(unwrapped, unwrapped.active_adapter, len(pixels)) as shares:
            features = call_through(model, unwrapped, self.encode, torch.cat([changed, *marked]))
        steady, triggered = features.split(len(pixels))
        hold, update = moved(steady, held), torch.stack(shares).mean()
        pulls, parts = [], zip(*(of.tensor_split(len(drawn)) for of in (triggered, held)), strict=True)
        for one, (after, before) in zip(drawn, parts, strict=True):
            worth, pull = self.pool.worth(after, before), moved(after, before)
            self._used.append((*one, worth))
            pulls.append(worth * pull)
            self.epoch_log.add(len(after), loss_pull=pull.detach(), worth=worth)
        self.epoch_log.add(len(rows), loss_hold=hold.detach(), loss_update=update.detach())
        loss = self.args.hold_weight * hold + self.args.update_weight * update
        part = min(1.0, self.pool.strength / FULL_AGREEMENT) ** 3
        loss = loss + part * self.args.pull_weight * torch.stack(pulls).mean()
        return (loss, {"features": features}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: `Trainer`'s estimate goes through all weights at every step."""
        return 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save and self.pool is not None:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            self.pool.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.pool = TriggerPool.load(Path(resume_from_checkpoint), self.args.pool_size, self.args.device)


class _EpochCallback(TrainerCallback):
    """Logs the means of an epoch."""

    def __init__(self, trainer: EncoderPurifier):
        self.trainer = trainer

    def on_epoch_end(
        self, args: EncoderPurifierArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        merged = EpochLog()
        for share in gather_object([self.trainer.epoch_log]):
            merged.merge(share)
        self.trainer.epoch_log = EpochLog()
        means = merged.means()
        if not all(map(math.isfinite, means.values())):
            raise InputError(
                f"the losses of the encoder's epoch {math.ceil(state.epoch or 0)} are not finite: lower the learning "
                "rate of its training, and start anew"
            )
        if means:
            self.trainer.log(means)


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint of an `EncoderPurifier` in a folder that was written whole."""
    whole = [one for one in folder.glob("checkpoint-*") if _is_whole(one)]
    return str(max(whole, key=lambda one: int(one.name.split("-")[1]))) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written; the pool of triggers comes last."""
    return all((checkpoint / name).is_file() for name in ("trainer_state.json", SAFETENSORS_WEIGHTS_NAME, POOL_FILE))


def _checkpoint_of(args: EncoderPurifierArguments) -> str | None:
    """What `resume_from_checkpoint` asks for: true, false, or a checkpoint's folder."""
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() in ("true", "false"):
        return last_checkpoint(Path(args.output_dir or "")) if wanted.lower() == "true" else None
    if not _is_whole(Path(wanted)):
        raise InputError(f"{wanted} is no whole checkpoint of an encoder: give true for the last in output_dir")
    return wanted


def purify_encoder(
    model: CLIPModel | PeftModel,
    images: Any,
    args: EncoderPurifierArguments,
    normalize: PixelNormalizer | None = None,
    searches: Sequence[Search] | None = None,
    suspected: Sequence[Tensor] = (),
) -> PeftModel:
    """A CLIP with a LoRA on its image tower that no longer follows universal triggers; see `EncoderPurifier`.

    Goes on from the last checkpoint in `args.output_dir` if `args.resume_from_checkpoint` is true, or from the one it
    names.

    Raises:
        InputError: if that is no checkpoint, or losses are not finite.
    """
    checkpoint = _checkpoint_of(args)
    trainer = EncoderPurifier(model, args, images, normalize, searches, suspected)
    trainer.train(resume_from_checkpoint=checkpoint)
    purified: Any = trainer.accelerator.unwrap_model(trainer.model)
    return purified.eval()
