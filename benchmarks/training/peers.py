"""What trains on the same documents without Polysome: the Hugging Face Trainer, and TRL's SFT trainer, both with peft.

Run by `speed.py`, each in a process of its own, and with nothing imported of Polysome, so that another environment can
run it: `python benchmarks/training/peers.py '{"program": "trainer", ...}'`. Prints one line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

LORA = ["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL = ["q_proj", "k_proj", "input_layernorm", "post_attention_layernorm", "norm"]
RANK, ALPHA = 64, 32
IGNORED = -100
PAD_TO_MULTIPLE = 8
"""As LLaMA-Factory pads training batches."""


def main(job: dict[str, Any]) -> None:
    """Pin this process, train, and tell what was measured."""
    os.sched_setaffinity(0, [job["core"]])
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HOME": job["scratch"], "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    import torch

    torch.set_num_threads(1)
    print(json.dumps(PEERS[job["program"]](job)))


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    """The Hugging Face Trainer as LLaMA-Factory sets it up: every micro-batch padded to its longest document, LoRA and
    fully trained modules by peft, no grouping by length."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = _model(job), _tokenizer(job)
    optimizers = _optimizers(model, job)
    collator = DataCollatorForSeq2Seq(
        tokenizer, model=model, pad_to_multiple_of=PAD_TO_MULTIPLE, label_pad_token_id=IGNORED
    )
    made = Trainer(
        model=model,
        args=TrainingArguments(**_arguments(job), remove_unused_columns=False),
        train_dataset=_dataset(job),
        data_collator=collator,
        processing_class=tokenizer,
        optimizers=optimizers,
    )
    return _train(made, job)


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFT trainer on the same tokens: packed by best-fit-decreasing, or padded."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = _model(job), _tokenizer(job)
    optimizers = _optimizers(model, job)
    made = SFTTrainer(
        model=model,
        args=SFTConfig(
            **_arguments(job),
            packing=job["packing"],
            packing_strategy="bfd",
            max_length=job["max_length"],
            # TRL's defaults are True; all contenders keep activations and compute in fp32.
            gradient_checkpointing=False,
            bf16=False,
        ),
        train_dataset=_dataset(job),
        processing_class=tokenizer,
        optimizers=optimizers,
    )
    told = {"isolation_difference": _isolation(made)} if job["packing"] else {}
    return told | _train(made, job)


PEERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"trainer": trainer, "trl": trl}


def _arguments(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": job["micro_batch_size"],
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "max_grad_norm": job["clip"],
        "use_cpu": True,
        "seed": job["seed"],
        "logging_steps": job["warmup_updates"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _model(job: dict[str, Any]) -> Any:
    """The same shape with the same parameters trained; the rules of stage 2 in peft's words."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(job["model"])
    torch.manual_seed(job["seed"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, vocab_size=job["vocabulary_size"])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0.0,
            target_modules=LORA,
            modules_to_save=FULL,
        ),
    )


def _optimizers(model: Any, job: dict[str, Any]) -> tuple[Any, Any]:
    """Fused AdamW with LoRA+ groups, no weight decay on norms, and the schedule's factors."""
    import torch

    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    raised = {name for name in parameters if "lora_B." in name}
    norms = {name for name, value in parameters.items() if value.ndim == 1}
    rate, decay = job["learning_rate"], job["weight_decay"]
    groups = [
        {
            "params": [value for name, value in parameters.items() if name not in raised | norms],
            "weight_decay": decay,
        },
        {"params": [parameters[name] for name in sorted(raised)], "lr": rate * job["ratio"], "weight_decay": decay},
        {"params": [parameters[name] for name in sorted(norms)], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=rate, fused=True)
    # As many factors as updates; a schedule is not what is compared.
    return adam, torch.optim.lr_scheduler.LambdaLR(
        adam, lambda done: job["factors"][min(done, len(job["factors"]) - 1)]
    )


def _tokenizer(job: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    tokenizer.padding_side = "right"
    return tokenizer


def _dataset(job: dict[str, Any]) -> Any:
    import numpy as np
    from datasets import Dataset

    stored = np.load(job["documents"])
    ends = np.cumsum(stored["lengths"])
    ids, labels = [], []
    for start, end, first_target in zip(ends - stored["lengths"], ends, stored["target_starts"], strict=True):
        own = stored["input_ids"][start:end].tolist()
        ids.append(own)
        labels.append([IGNORED] * int(first_target) + own[first_target:])
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def _train(made: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Train; updates after the warm-up are timed from end to end, and what their micro-batches held is counted."""
    from transformers import TrainerCallback

    times: list[float] = []
    batches: list[tuple[int, int]] = []
    collate = made.data_collator

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            times.append(time.perf_counter())

    def counted(examples: list[dict[str, Any]]) -> Any:
        batch = collate(examples)
        batches.append((batch["input_ids"].numel(), int((batch["labels"][:, 1:] != IGNORED).sum())))
        return batch

    made.add_callback(Clock())
    made.data_collator = counted
    result = made.train()
    assert len(batches) == len(times), "one micro-batch is one update"
    timed = batches[job["warmup_updates"] :]
    return {
        "seconds": times[-1] - times[job["warmup_updates"] - 1],
        "updates": len(timed),
        "positions": sum(positions for positions, _ in timed),
        "targets": sum(targets for _, targets in timed),
        "all_targets": sum(targets for _, targets in batches),
        "trainable": sum(value.numel() for value in made.model.parameters() if value.requires_grad),
        "final_loss": result.training_loss,
        "versions": {
            name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "datasets", "trl")
        },
    }


def _isolation(made: Any) -> float:
    """Largest difference between logits of a packed micro-batch and those of its documents by themselves; 0 within
    rounding means that documents do not see each other."""
    import torch

    batch = made.data_collator([made.train_dataset[0], made.train_dataset[1]])
    ids, positions = batch["input_ids"], batch["position_ids"]
    starts = torch.nonzero(positions[0] == 0).flatten().tolist()
    model = made.model.eval()
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions).logits[0]
        apart = [
            model(input_ids=ids[:, start:end]).logits[0]
            for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True)
        ]
    model.train()
    return float((together - torch.cat(apart)).abs().max())


if __name__ == "__main__" and len(sys.argv) > 1:
    main(json.loads(sys.argv[1]))
