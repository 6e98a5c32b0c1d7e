package raftstore

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// sink hands raft's log records to slog, one level lower: what raft calls an
// error (a voter that does not answer) heals by itself, and Error is for what
// an operator must act on.
type sink struct {
	logger *slog.Logger
	closed <-chan struct{} // after it, what breaks is meant to
}

func newLogger(logger *slog.Logger, closed <-chan struct{}) hclog.Logger {
	level := hclog.Info
	if logger.Enabled(context.Background(), slog.LevelDebug) {
		level = hclog.Trace
	}
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: level, Output: io.Discard})
	l.RegisterSink(sink{logger, closed})
	return l
}

// Accept implements hclog.SinkAdapter.
func (s sink) Accept(name string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Error:
		to = slog.LevelWarn
	case hclog.Warn:
		to = slog.LevelInfo
	case hclog.NoLevel, hclog.Trace, hclog.Debug, hclog.Info, hclog.Off:
	}
	select {
	case <-s.closed:
		to = slog.LevelDebug
	default:
	}
	s.logger.Log(context.Background(), to, name+": "+msg, args...)
}
