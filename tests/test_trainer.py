"""`transformers.Trainer` with the collator of this package: training, evaluation, saving."""

from pathlib import Path

import pytest
import torch
from tiny_models import IMAGE, MASK, tiny_config
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.data import SyntheticScenes
from sam_hf.training.collator import ClickSamplingCollator

NUM_EVAL = 6


def best_masks(predictions: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
    """Of one batch, what is worth keeping: the mask that the model rates highest, [B, N, h, w]."""
    iou_scores, pred_masks, _ = predictions
    return torch.take_along_dim(pred_masks, iou_scores.argmax(dim=-1)[..., None, None, None], dim=2)[:, :, 0]


def shapes(prediction: EvalPrediction) -> dict[str, tuple[int, ...]]:
    return {"masks": prediction.predictions.shape, "labels": prediction.label_ids[-1].shape}


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    torch.manual_seed(0)
    collator = ClickSamplingCollator(SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE})), max_objects=4)
    options = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        learning_rate=3e-3,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=15,
        save_strategy="steps",
        save_steps=15,
        load_best_model_at_end=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(
        model=SamHfModel(tiny_config(decoder={"use_object_score": True})),
        args=options,
        train_dataset=SyntheticScenes(8),
        eval_dataset=SyntheticScenes(NUM_EVAL),
        data_collator=collator,
        compute_metrics=shapes,
        preprocess_logits_for_metrics=best_masks,
    )


def test_trainer_learns_and_evaluates(trainer):
    before = trainer.evaluate()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert sum(losses[-2:]) < 0.6 * sum(losses[:2])
    assert len(evaluated) == 2 and max(evaluated) < 0.5 * before["eval_loss"]
    # Evaluation collects predictions, not embeddings: of all images, padded to the most objects of any batch.
    count = before["eval_masks"][1]
    assert before["eval_masks"] == (NUM_EVAL, count, MASK, MASK)
    assert before["eval_labels"] == (NUM_EVAL, count, IMAGE, IMAGE)
    best = SamHfModel.from_pretrained(trainer.state.best_model_checkpoint)
    for name, tensor in best.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name
