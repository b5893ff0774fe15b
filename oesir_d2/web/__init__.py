"""The web app (extra ``web``): ``python -m oesir_d2.web --index INDEX``."""
