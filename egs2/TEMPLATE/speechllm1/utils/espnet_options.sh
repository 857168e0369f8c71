# shellcheck shell=bash
# Answers to options of ESPnet's asr.sh, st.sh and s2t.sh that have another name here, or
# no counterpart. parse_options.sh calls espnet_option for each option that it does not know.

espnet_option() { # <name>: print the answer; nothing for other names
    local renamed='' reason=''
    case $1 in
        asr_exp | st_exp | s2t_exp) renamed=speechllm_exp ;;
        asr_stats_dir | st_stats_dir | s2t_stats_dir) renamed=speechllm_stats_dir ;;
        asr_tag | st_tag | s2t_tag) renamed=train_tag ;;
        asr_config | st_config | s2t_config) renamed=train_config ;;
        asr_args | st_args | s2t_args) renamed=train_args ;;
        inference_asr_model | inference_st_model | inference_s2t_model) renamed=inference_model ;;
        pretrained_model | pretrained_asr) renamed=init_param ;;
        local_score_opts) renamed=score_opts ;;
        tgt_nbpe) renamed=nbpe ;;
        tgt_bpemode) renamed=bpemode ;;
        tgt_token_type) renamed=token_type ;;
        batch_size) renamed='inference_args "--batch_size N"' ;;
        debug) renamed='inference_args "--debug"' ;;
        ignore_init_mismatch) renamed='train_args "--ignore_init_mismatch true"' ;;
        *_fold_length) renamed='train_args "--batch_bins N"' ;;
        cleaner) reason="texts are normalised by language (speechllm/text/normalization.py); --plain_transcripts true does so for the LLM's transcripts, too" ;;
        bpe_nlsyms | src_bpe_nlsyms | tgt_bpe_nlsyms | nlsyms_txt) reason="CTC texts are normalised to letters and digits, so other symbols do not occur in them" ;;
        bpe_char_cover | tgt_bpe_char_cover) reason="bpe covers all characters of the training text; --min_character_count leaves out rare ones with --token_type char" ;;
        bpe_train_text | tgt_bpe_train_text) reason="bpe is trained on the transcripts of the training sets" ;;
        oov | blank | sos_eos) reason="the label is that of ESPnet's default" ;;
        g2p | src_token_type | src_nbpe | src_bpe* | tgt_bpe*) reason="targets are tokens of the LLM" ;;
        feats_type) reason="stage 3 writes waveforms, as ESPnet's raw" ;;
        feats_normalize) reason="the pretrained encoder normalises its own input" ;;
        num_splits_asr | num_splits_st | num_splits_s2t) renamed=num_splits_speechllm ;;
        num_splits_lm | lm_* | use_lm | use_word_lm | word_vocab_size | inference_lm | use_ngram | ngram_* | inference_ngram) reason="the LLM of the training config is the language model" ;;
        use_k2 | k2_* | use_nbest_rescoring | num_paths | nll_batch_size | use_streaming) reason="the decoding config sets the search: beam_size, ctc_weight, rescore_ctc_weight" ;;
        skip_upload | skip_upload_hf | skip_packing) reason="stages 14 and 15 run only if --stop_stage names them" ;;
        python) reason="the interpreter is that of tools/activate_python.sh" ;;
    esac
    [ -z "${renamed}" ] || echo "is --${renamed} here; --help lists the options"
    [ -z "${reason}" ] || echo "has no counterpart here, leave it out: ${reason}"
}
