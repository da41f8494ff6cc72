"""How well triggered images are told from clean ones by a purified head beside the undefended one."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.processes import join_processes
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.detection.heads import Heads
from peft_cbpt.detection.input_detector import Threshold, auroc, conformal_threshold, f1, trigger_scores
from peft_cbpt.evaluation.classifiers import Classifier, apart, one_after_the_other
from peft_cbpt.evaluation.detect import class_label, features_of
from peft_cbpt.evaluation.eval_sets import EvalSet
from peft_cbpt.evaluation.measure import encode_versions

CLEAN = "clean"


@dataclass(frozen=True)
class Detection:
    """Purified heads beside the undefended one.

    Args:
        undefended: The head before purification.
        purified: Other heads; where their image encoder is another one, each head is asked on its own's features.
        clean: The clean images that thresholds are set on.
        class_name: What a scan found, if it found something; see `input_detector.trigger_scores`.
        batch_size: Images encoded at once.
        num_workers: Processes that read images, for each GPU.
    """

    undefended: Classifier
    purified: Sequence[Classifier]
    clean: UnlabelledImages
    class_name: str | None
    batch_size: int
    num_workers: int

    @torch.no_grad()
    def measure(self, eval_set: EvalSet, attacks: Mapping[str, Attack]) -> list[dict[str, Any]]:
        """A pass over a test set: for every purified head a row for the clean images, and one for every attack.

        Heads of one image encoder share the pass.
        All processes must call; the first gets the rows. Triggered images of the target's own class do not count.
        """
        rows: list[dict[str, Any]] = []
        for clip in {id(one.clip): one.clip for one in self.purified}.values():
            rows += self._measure([one for one in self.purified if one.clip is clip], eval_set, attacks)
        return rows

    def _measure(
        self, purified: Sequence[Classifier], eval_set: EvalSet, attacks: Mapping[str, Attack]
    ) -> list[dict[str, Any]]:
        state, clip, names = join_processes(), self.undefended.clip, eval_set.class_names
        own = purified[0].clip
        versions: dict[str, Attack | None] = {CLEAN: None, **attacks}
        label = class_label(names, self.class_name)
        heads = {
            (one.name, name): _heads(self.undefended, one, names, attack)
            for one in purified
            for name, attack in versions.items()
        }
        scores = {key: array("d") for key in heads}
        labels = array("q")
        encoders = []
        for one_clip in [clip] if own is clip else [own, clip]:
            one_clip.model.to(state.device)
            encoders.append(image_encoder(one_clip.model, one_clip.normalize))
        encode = one_after_the_other(encoders)
        clean_features = features_of(encode, self.clean, state.device, self.batch_size)
        batches = encode_versions(
            encode,
            eval_set.my_images(clip.image_processor),
            {name: attack.trigger for name, attack in attacks.items()},
            state.device,
            self.batch_size,
            self.num_workers,
        )
        for batch, features, _ in batches:
            if batch is not None:
                labels.extend(batch["labels"].tolist())
                for (one, name), two in heads.items():
                    marked = features[name if versions[name] else ""]
                    scores[one, name].extend(trigger_scores(marked, two, label).tolist())
        for one_clip in (own, clip):
            one_clip.model.cpu()
        shares = gather_object([(labels, scores)])
        if not state.is_main_process:
            return []
        all_labels = torch.from_numpy(np.concatenate([np.asarray(share) for share, _ in shares]))
        rows = []
        for classifier in purified:
            threshold = conformal_threshold(trigger_scores(clean_features, heads[classifier.name, CLEAN], label))
            every = {
                name: torch.from_numpy(
                    np.concatenate([np.asarray(share[classifier.name, name]) for _, share in shares])
                )
                for name in versions
            }
            for name, attack in versions.items():
                own = every[name] if attack is None else every[name][all_labels != names.index(attack.target_class)]
                where = {"dataset": eval_set.name, "classifier": classifier.name, "attack": name}
                rows.append(where | _figures(own, every[CLEAN] if attack else None, threshold))
        return rows


def _heads(undefended: Classifier, purified: Classifier, names: Sequence[str], attack: Attack | None) -> Heads:
    """Both heads on the classes of a test set, as they answer under an attack's text trigger."""
    scale = undefended.clip.model.logit_scale.exp().item()
    heads = purified.class_features(names, attack), undefended.class_features(names, attack)
    return Heads(*(heads if purified.clip is undefended.clip else apart(*heads)), scale)


def _figures(scores: Tensor, clean: Tensor | None, threshold: Threshold) -> dict[str, Any]:
    """What is said of scores (N,) of images, and beside those of clean test images (M,) if they are triggered."""
    flagged = scores > threshold.value
    figures = {
        "n_images": len(scores),
        "flagged": flagged.double().mean().item(),
        "threshold": threshold.value,
        "level": threshold.level,
        "n_clean": threshold.n_images,
    }
    if clean is not None:
        figures |= {"auroc": auroc(scores, clean), "f1": f1(flagged, clean > threshold.value)}
    return figures
