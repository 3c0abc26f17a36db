"""`transformers.Trainer` with the collator of this package: training, evaluation, saving."""

from pathlib import Path

import pytest
import torch
from tiny_models import IMAGE, MASK, tiny_config
from torch import Tensor
from transformers import AutoModel, EvalPrediction, Trainer, TrainingArguments

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.data import SyntheticScenes
from sam_hf.training.collator import ClickSamplingCollator
from sam_hf.training.interactive import InteractiveTrainer

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


def rounds_trainer(folder: Path, **options) -> Trainer:
    """Trains with corrective clicks: 2 steps of 2 batches, and an evaluation."""
    torch.manual_seed(0)
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}))
    return Trainer(
        model=InteractiveTrainer(SamHfModel(tiny_config(decoder={"use_object_score": True})), center_share=0.5),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **options,
        ),
        train_dataset=SyntheticScenes(8),
        eval_dataset=[{**record, "draw": 0} for record in SyntheticScenes(3, seed=1)],
        data_collator=ClickSamplingCollator(processor, max_objects=4, num_corrections=2),
    )


def test_rounds_with_corrections_are_trained_and_the_model_is_saved(tmp_path):
    trainer = rounds_trainer(tmp_path / "run", remove_unused_columns=False)
    model = trainer.model.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    # The records of evaluation have numbers: the same samples again.
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged == [trainer.evaluate()["eval_loss"]]
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModel.from_pretrained(tmp_path / "saved").state_dict()
    assert any(not torch.equal(saved[name], before[name]) for name in before)
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_accumulated_batches_are_averaged(tmp_path):
    """The gradient of a step is the mean of those of its batches."""
    trainer = rounds_trainer(tmp_path, remove_unused_columns=False)
    batches = [trainer.data_collator([{**record, "draw": 0}]) for record in SyntheticScenes(2)]
    trainer.current_gradient_accumulation_steps = 2
    trainer.create_optimizer_and_scheduler(2)
    for batch in batches:
        trainer.training_step(trainer.model, batch)
    found = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    (sum(trainer.model(**batch).loss for batch in batches) / 2).backward()
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-3, atol=1e-6)


def test_columns_that_trainer_takes_out_are_named(tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        rounds_trainer(tmp_path).train()
