from typing import Literal
from pydantic import BaseModel, ConfigDict


class TrainRecipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    passes: int = 1
    batch_tokens: int = 131072
    micro_batch: int | Literal["auto"] = "auto"
    peak_lr: float = 3e-4
    schedule: str = "wsd"
    warmup_fraction: float = 0.02
    cooldown_fraction: float = 0.2
    weight_decay: float = 0.1
    beta2: float = 0.95
    grad_clip: float = 1.0
    precision: str = "auto"
    compile: bool | Literal["auto"] = "auto"
    deterministic: bool = True
    validations: int = 20
    save_every_minutes: float = 10.0
    keep_checkpoints: int = 2
