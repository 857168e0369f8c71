# shellcheck shell=bash disable=SC2034  # read by run.sh and local/data.sh
# Options of run.sh that local/data.sh takes too. Both source it before
# utils/parse_options.sh.

# of speechllm.bin.align_recordings and speechllm.bin.prepare_data
READING_OPTIONS=(data lang tgt_lang max_seconds speaker_from audio_dir
    {audio,text,translation,speaker,split,language,duration,start,end}_column)
# of speechllm.bin.prepare_data
SET_OPTIONS=(dev_share test_share)
# of speechllm.sh, for the cost of the training
COST_OPTIONS=(train_args encoder llm)
DATA_OPTIONS=("${READING_OPTIONS[@]}" "${SET_OPTIONS[@]}" "${COST_OPTIONS[@]}"
    align_model train_config warmup_config first_pass_config)

for _name in "${DATA_OPTIONS[@]}"; do printf -v "${_name}" '%s' ''; done
lang=en
max_seconds=30
warmup_config=conf/warmup.yaml
first_pass_config=conf/first_pass.yaml

DATA_HELP="\
  --data PATH             folder or file with your data: audio with .txt, .srt or .vtt files,
                          a .csv, .tsv or .jsonl manifest, a Kaldi dir, a CutSet [OWN_DATA in db.sh]
  --lang L                spoken language, a two-letter code [${lang}]
  --tgt_lang L            also translate into this language; needs translations [none]
  --align_model DIR       trained model with a CTC branch that cuts long recordings by their
                          transcripts and finds texts that do not fit [none]
  --train_config FILE     config of stage 9 [conf/train.yaml; conf/adapt.yaml with --init_param]
  --warmup_config FILE    config of stage 8; '' skips it [${warmup_config}; '' with --init_param]
  --first_pass_config FILE  fine-tuning of Whisper with its decoder for the first pass, in stage 8;
                          '' leaves it as pretrained [${first_pass_config}]
  --max_seconds S         longest utterance [${max_seconds}]
  --dev_share X           share of the speech for dev, if there is no dev set [0.1, at most 2 hours]
  --test_share X          share of the speech for test, if there is no test set [0.1, at most 2 hours]
  --speaker_from WHAT     folder or name: the speaker is the folder of the audio file, or its
                          name up to the first - or _ [from the data]
  --audio_dir DIR         folder that paths in a manifest are relative to [that of the manifest]
  --audio_column NAME     columns of a manifest [all are guessed by their names, and printed]
  --text_column NAME
  --translation_column NAME
  --speaker_column NAME
  --split_column NAME
  --language_column NAME
  --duration_column NAME  seconds
  --start_column NAME     seconds, of a segment
  --end_column NAME       seconds"
