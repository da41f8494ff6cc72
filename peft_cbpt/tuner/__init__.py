"""Class-wise Backdoor Prompt Tuning (CBPT) as a PEFT method for CLIP.

Importing this package registers the method, after which `get_peft_model`, `PeftModel.from_pretrained` and
transformers' own `load_adapter` know it.
"""

from peft_cbpt.tuner.config import CBPTConfig
from peft_cbpt.tuner.encoder import with_encoder
from peft_cbpt.tuner.fingerprint import BaseMismatchWarning, weights_fingerprint
from peft_cbpt.tuner.layer import CBPTEmbedding
from peft_cbpt.tuner.model import CBPTModel
from peft_cbpt.tuner.register import register

__all__ = ["BaseMismatchWarning", "CBPTConfig", "CBPTEmbedding", "CBPTModel", "weights_fingerprint", "with_encoder"]

register(CBPTModel)
