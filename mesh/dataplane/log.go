package dataplane

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// deviceLogger passes wireguard-go's errors to log, at most one per
// logInterval and device: with the uplink gone, wireguard-go has one for every
// packet. What is left out is counted in the next line.
func deviceLogger(log *slog.Logger, name string) *device.Logger {
	var (
		mu      sync.Mutex
		next    time.Time
		skipped int
	)
	return &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			if now.Before(next) {
				skipped++
				return
			}
			log.Warn("wireguard", "device", name, "error", fmt.Sprintf(format, args...), "skipped", skipped)
			next, skipped = now.Add(logInterval), 0
		},
	}
}
