package control

import (
	"context"
	"net/http"
	"time"

	"guywire/mesh"
)

// renew replaces the certificate at half of its life, long before it expires.
func (p *Plane) renew() {
	for {
		pause := renewCheck
		if p.renewalDue(time.Now()) {
			if err := p.renewOnce(); err != nil {
				p.logger.Warn("certificate could not be renewed", mesh.LogError, err, "expires", p.expiry())
				pause = renewRetry
			} else {
				p.logger.Info("certificate renewed", "expires", p.expiry())
			}
		}
		if !p.sleep(jitter(pause)) {
			return
		}
	}
}

func (p *Plane) renewalDue(now time.Time) bool {
	leaf := p.certificate.Load().Leaf
	return now.After(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2))
}

func (p *Plane) expiry() time.Time { return p.certificate.Load().Leaf.NotAfter }

func (p *Plane) renewOnce() error {
	ctx, cancel := context.WithTimeout(p.life, changeTimeout)
	defer cancel()
	var fresh certificate
	if ca := p.voter.authority(); ca != nil {
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
	p.client.CloseIdleConnections() // those still show the old one
	return p.files.write(certificateFile, fresh)
}
