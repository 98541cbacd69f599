"""Fine-tune a small BERT on texts of which a third have the wrong label, with 20 checked ones.

Each class has ten words of its own, and one word in ten is of the other class. The BERT has random
parameters, so that nothing is downloaded.

    python examples/noisy_text.py
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from metaweight.integrations.huggingface import ReweightingTrainer

torch.manual_seed(0)
labels = torch.arange(1020) % 2
classes_of_words = labels[:, None] ^ (torch.rand(1020, 8) < 0.1)
words = torch.randint(10, (1020, 8)) + 10 * classes_of_words
wrong = (torch.rand(1020) < 1 / 3) & (torch.arange(1020) >= 20)
pairs = zip(words, labels ^ wrong, strict=True)
texts = [{"input_ids": text, "labels": label} for text, label in pairs]

size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
model = BertForSequenceClassification(BertConfig(vocab_size=20, num_hidden_layers=2, **size))
arguments = TrainingArguments(
    "results/noisy_text", num_train_epochs=4, learning_rate=1e-3, per_device_train_batch_size=20
)
trainer = ReweightingTrainer(model, arguments, train_dataset=texts[20:], clean_dataset=texts[:20])
trainer.train()

weights = trainer.sample_weights()
right, wrong = weights[~wrong[20:]].mean(), weights[wrong[20:]].mean()
print(f"mean weight of right labels {right:.2f}, of wrong labels {wrong:.2f}")
