"""Pre-training and zero-shot evaluation on committed shards; needs neither Ray nor the pipeline package.

Reading order: data.py (samples), loader.py (batches), objectives/ (losses), trainer.py (the loop), evaluate.py.
"""
