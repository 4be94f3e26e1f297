"""What goes to the hub: the model as it is saved, never checkpoints, which hold fp32 masters."""

from typing import Any

from huggingface_hub import upload_folder
from transformers import Trainer

NOT_UPLOADED = ["_*", "checkpoint-*", "*.jsonl", "reference.safetensors"]
"""Of what lies beside a model in the Trainer's directory."""


def upload(
    trainer: Trainer,
    directory: str,
    commit_message: str | None = None,
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> Any:
    """Upload what `directory` holds of the model to `trainer.args.hub_model_id`, from the first process.

    What is `None` is as the Trainer's arguments say. The Trainer's own upload would take checkpoints too.
    """
    if not trainer.is_world_process_zero():
        return None
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token, private=private)
    return upload_folder(
        repo_id=str(trainer.hub_model_id),
        folder_path=directory,
        commit_message=commit_message,
        token=token or trainer.args.hub_token,
        revision=revision or trainer.args.hub_revision,
        run_as_future=not blocking,
        ignore_patterns=NOT_UPLOADED,
    )
