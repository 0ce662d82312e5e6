"""STTS on the demo model: training, agreement with the engine, accuracy, speed and memory."""
