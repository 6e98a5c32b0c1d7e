package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"guywire/mesh"
)

// notify tells systemd, if it started this process and asked to be told.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told that this process is well, and may end it", mesh.LogError, err)
	}
}

// supervised tells systemd that this process serves, and then, if the unit has
// WatchdogSec, that it lives: three times in that span, as long as alive returns.
func supervised(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	notify(log, daemon.SdNotifyReady)
	context.AfterFunc(ctx, func() { notify(log, daemon.SdNotifyStopping) })
	span, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog of systemd is not served", mesh.LogError, err)
	}
	if span > 0 {
		go beat(ctx, span/3, func() { notify(log, daemon.SdNotifyWatchdog) }, alive)
	}
}

// beat calls tell every so often, each time after alive has returned without an
// error: who hangs is silent.
func beat(ctx context.Context, every time.Duration, tell func(), alive func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if alive(ctx) == nil {
			tell()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
