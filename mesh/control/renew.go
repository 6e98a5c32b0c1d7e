package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
)

// renew replaces the certificate at half of its life, long before it expires,
// when it is from the future, when the mesh has another CA, and when others say
// that they have.
func (p *Plane) renew() {
	pause, next := renewFirst, time.Time{}
	for {
		if now := time.Now(); !now.Before(next) && (p.stale.Load() || p.renewalDue(now)) {
			err := p.renewOnce()
			switch {
			case hasCode(err, CodeRemoved): // with a CA that is retired, only this call hears of it
				p.end(fmt.Errorf("%w (%w)", ErrRemoved, err))
			case err != nil:
				p.logger.Warn("certificate could not be renewed", mesh.LogError, err, "expires", p.expiry())
				next, pause = now.Add(jitter(pause)), min(2*pause, renewRetry)
			default:
				p.logger.Info("certificate renewed", "expires", p.expiry())
				p.stale.Store(false)
				pause = renewFirst
				if p.renewalDue(now) { // one of the clocks is wrong
					next = now.Add(jitter(renewRetry))
				}
			}
		}
		if !p.sleep(jitter(renewCheck)) {
			return
		}
	}
}

func (p *Plane) renewalDue(now time.Time) bool {
	shown := p.certificate.Load()
	if now.Before(shown.Leaf.NotBefore) || now.After(shown.Leaf.NotBefore.Add(shown.Leaf.NotAfter.Sub(shown.Leaf.NotBefore)/2)) {
		return true
	}
	return !p.signedByCurrent()
}

// signedByCurrent reports whether this node's certificate is of the CA that
// issues them, as far as this node knows.
func (p *Plane) signedByCurrent() bool {
	pin, known := current(p.State())
	shown := p.certificate.Load().Certificate
	signer, err := transport.Pin(shown[len(shown)-1])
	return !known || err == nil && signer == pin
}

func (p *Plane) expiry() time.Time { return p.certificate.Load().Leaf.NotAfter }

// renewOnce gets a new certificate: on a voter from itself, unless its own log
// may not know of the newest CA, or its clock is wrong.
func (p *Plane) renewOnce() error {
	ctx, cancel := context.WithTimeout(p.life, changeTimeout)
	defer cancel()
	var fresh certificate
	log, ca := p.voter.store(), p.voter.authority()
	if log != nil && ca != nil && !p.stale.Load() && p.rightClock(ctx, log) {
		leaf, err := ca.Issue(p.config.Ring.Identity(), time.Now())
		if err != nil {
			return err
		}
		fresh = certificate{Node: leaf, Authority: ca.Certificate()}
	} else if err := p.atVoter(ctx, http.MethodPost, "/v1/cert", struct{}{}, &fresh); err != nil {
		return err
	}
	if err := p.present(fresh); err != nil {
		return err
	}
	p.closeIdle() // those still show the old one
	return p.files.write(certificateFile, fresh)
}
