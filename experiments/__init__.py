"""Command-line experiments on top of `flax_lstm`; see the README.

Commands: `mnist`, `predict`, `gates`, `export`, `compare`; `draw/`, `drawings/`,
`benchmark/`, `gradient_flow/`. Each file below imports only those listed before it:

- `errors`, `ending`, `streams`, `command_line`, `shared_flags`, `checkpoint_folders`,
  `whole_file`: what commands share.
- `data/`, `model_input`: datasets; an image as a sequence.
- `allocator`, `devices`, `processes`, `batches`: a batch on many devices.
- `augmentation`, `dropout`, `recipes`, `hyper_parameters`, `train_state`, `training`,
  `evaluation`: training and testing.
- `metrics`, `checkpoints`, `lock`, `stopping`: what a run leaves, however it ends.
- `ink`, `images`, `answers`, `prediction`, `restored`, `one_digit`, `reading`,
  `artifact`: a trained classifier and what it is shown.
- `pictures/`: figures.
- `run`: all of it, from the data to the final test.
"""
