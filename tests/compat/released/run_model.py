"""Generates with a checkpoint as the released scripts do: on the GPU, with the code that lies beside the weights."""

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("SpikingBrain-7B", trust_remote_code=True, local_files_only=True)
model = model.cuda().eval()
ids = torch.tensor([[5, 9, 3, 12, 7]], device="cuda")
mask = torch.ones_like(ids).to("cuda", torch.long)
out = model.generate(
    ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=True
)
print(*out[0].tolist(), out.device)
