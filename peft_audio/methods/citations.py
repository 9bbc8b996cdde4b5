"""The papers that the methods come from, as BibTeX entries for the cards of adapters."""

IPET = """@inproceedings{kim2023integrated,
  title = {Integrated Parameter-Efficient Tuning for General-Purpose Audio Models},
  author = {Kim, Ju-ho and Heo, Jungwoo and Shin, Hyun-seo and Lim, Chan-yeong and Yu, Ha-Jin},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year = {2023},
  eprint = {2211.02227},
  archiveprefix = {arXiv}
}"""

LOAA = """@misc{yeo2024look,
  title = {When Vision Models Meet Parameter Efficient Look-Aside Adapters Without Large-Scale Audio Pretraining},
  author = {Yeo, Juan and Jang, Jinkwan and Chae, Kyubyung and Mun, Seongkyu and Kim, Taesup},
  year = {2024},
  eprint = {2412.05951},
  archiveprefix = {arXiv}
}"""

AAT = """@misc{liang2024aat,
  title = {{AAT}: Adapting Audio Transformer for Various Acoustics Recognition Tasks},
  author = {Liang, Yun and Lin, Hai and Qiu, Shaojian and Zhang, Yihang},
  year = {2024},
  eprint = {2401.10544},
  archiveprefix = {arXiv}
}"""

PETL_AST = """@misc{cappellazzo2023parameter,
  title = {Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers},
  author = {Cappellazzo, Umberto and Falavigna, Daniele and Brutti, Alessio and Ravanelli, Mirco},
  year = {2023},
  eprint = {2312.03694},
  archiveprefix = {arXiv}
}"""

LST = """@inproceedings{sung2022lst,
  title = {{LST}: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning},
  author = {Sung, Yi-Lin and Cho, Jaemin and Bansal, Mohit},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2022},
  eprint = {2206.06522},
  archiveprefix = {arXiv}
}"""
