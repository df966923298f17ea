//! Deliberate faults for the test of the tests: a build with the feature `defects` has one of them if it is told to. In every
//! other build, the shipped one above all, the answer is `false` when it is compiled, and nothing of this is left. A release
//! build with them does not compile.

#[cfg(all(feature = "defects", not(debug_assertions)))]
compile_error!(
    "the feature `defects` builds in faults for `make defects`; what is shipped must not have it"
);

/// A fault that promptd could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A prompt is acknowledged to the broker before anything is sure.
    AcknowledgeAtOnce,
    /// Answers that the broker has not acknowledged are forgotten with the connection.
    LoseOutbox,
    /// An answer goes where another client waits for its own.
    WrongReplyTopic,
    /// An answer comes without its correlation data.
    LoseCorrelation,
    /// A prompt that is in work, or was answered, is generated again when it is delivered again.
    GenerateTwice,
    /// Two clients whose prompts differ only in where the answer goes count as one.
    MixClients,
    /// An answer is published twice.
    AnswerTwice,
    /// After a connection is lost the topics are not subscribed again.
    StayDeaf,
    /// `cancel` is not heard.
    ForgetCancel,
    /// A prompt goes on when its client has left.
    RunForNobody,
    /// A slot stays taken when its answer is whole.
    KeepSlot,
    /// A deadline passes and nothing happens.
    IgnoreDeadline,
    /// A prompt that kills every engine is tried for ever.
    NeverBlame,
    /// What ran in an engine that died is forgotten.
    ForgetRunning,
    /// A prompt runs again with another seed.
    RedrawSeed,
    /// The next engine says the last token again.
    RepeatToken,
    /// The next engine leaves a token out.
    SkipToken,
    /// Now and then a piece of a text is lost.
    LosePiece,
    /// What an earlier service accepted or answered is not taken up.
    ForgetRecord,
    /// A prompt is blamed for each end of the service.
    BlameForEnds,
}

impl Defect {
    /// All of them.
    pub const ALL: &[Defect] = &[
        Defect::AcknowledgeAtOnce,
        Defect::LoseOutbox,
        Defect::WrongReplyTopic,
        Defect::LoseCorrelation,
        Defect::GenerateTwice,
        Defect::MixClients,
        Defect::AnswerTwice,
        Defect::StayDeaf,
        Defect::ForgetCancel,
        Defect::RunForNobody,
        Defect::KeepSlot,
        Defect::IgnoreDeadline,
        Defect::NeverBlame,
        Defect::ForgetRunning,
        Defect::RedrawSeed,
        Defect::RepeatToken,
        Defect::SkipToken,
        Defect::LosePiece,
        Defect::ForgetRecord,
        Defect::BlameForEnds,
    ];

    /// The name, as `PROMPTD_DEFECT` has it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Whether this build has it.
    #[cfg(not(feature = "defects"))]
    pub(crate) const fn is_here(self) -> bool {
        let _ = self;
        false
    }

    /// Whether this build was told to have it.
    #[cfg(feature = "defects")]
    pub(crate) fn is_here(self) -> bool {
        static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| std::env::var("PROMPTD_DEFECT").ok());
        chosen.as_deref() == Some(self.name().as_str())
    }
}
