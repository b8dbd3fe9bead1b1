"""Studies on borrowed machines: one notebook that carries everything, Kaggle's client, Colab's commands."""
